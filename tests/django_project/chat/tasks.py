from celery import shared_task

from .models import Message


@shared_task
def send_message(message_id):
    Message.objects.filter(pk=message_id).update(sent=True)
    mark_as_read.delay(message_id)


@shared_task(bind=True, max_retries=3)
def mark_as_read(self, message_id):
    if not Message.objects.filter(pk=message_id).update(read=True):
        raise self.retry(countdown=1)


@shared_task
def fetch_profile_pic(user_id):
    return user_id
