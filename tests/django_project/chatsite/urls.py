from django.urls import include, path

urlpatterns = [path("queues/", include("django_integration.urls"))]
