"""The tasks of a chat backend, in plain Celery."""

from __future__ import annotations

from celery import shared_task

from . import ledger


@shared_task(bind=True)
def send_message(self, chat_id, text="hello"):
    _record(self)
    return {"chat": chat_id, "text": text}


@shared_task(bind=True, ignore_result=True)
def mark_as_read(self, message_id):
    _record(self)


@shared_task(bind=True, autoretry_for=(OSError,), retry_backoff=True)
def fetch_profile_pic(self, user_id):
    _record(self)
    return f"/pics/{user_id}.png"


@shared_task(bind=True, max_retries=5)
def fetch_group_info(self, group_id, fail_first=0):
    _record(self)
    if self.request.retries < fail_first:
        raise self.retry(countdown=0)
    return {"group": group_id, "members": [1, 2, 3]}


def _record(task):
    request = task.request
    ledger.write("run", request.id, task=task.name, retries=request.retries, hostname=request.hostname)
