from django.db import models


class Message(models.Model):
    text = models.TextField()
    sent = models.BooleanField(default=False)
    read = models.BooleanField(default=False)
