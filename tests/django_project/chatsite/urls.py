from django.contrib import admin
from django.urls import include, path

urlpatterns = [path("queues/", include("django_integration.urls")), path("admin/", admin.site.urls)]
