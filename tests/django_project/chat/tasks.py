import os

from celery import shared_task
from celery.signals import worker_init
from django.db import connection

from .models import Message

#: What the worker's parent opened: the same object in a child that was forked.
parents = []


@worker_init.connect
def use_database_in_parent(**_):
    if os.environ.get("CHAT_PARENT_USES_DATABASE"):
        connection.ensure_connection()
        parents.append(connection.connection)


@shared_task
def send_message(message_id):
    Message.objects.filter(pk=message_id).update(sent=True)
    mark_as_read.delay(message_id)


@shared_task(bind=True, max_retries=3)
def mark_as_read(self, message_id):
    if not Message.objects.filter(pk=message_id).update(read=True):
        raise self.retry(countdown=1)


@shared_task(ignore_result=False)
def look_at_connection():
    """Say what the database connection is at the start of a task, and use it."""
    found = connection.connection
    Message.objects.count()
    return {
        "pid": os.getpid(),
        "parent_has_one": len(parents) == 1,
        "open": found is not None,
        "of_parent": connection.connection in parents,
        "same_as_before": found is connection.connection,
    }


@shared_task
def fetch_profile_pic(user_id):
    return user_id
