"""Signals that a Django project may receive.

====================  ============================================================  ==================================
signal                when                                                          arguments
====================  ============================================================  ==================================
``dashboard_action``  a person confirmed an action on the dashboard, before it is   ``user`` (or None), ``action``,
                      carried out                                                   ``what`` (a sentence), ``count``
``queue_alert``       the level of an alert changed: ``ok``, ``warning`` or         ``queue``, ``name``, ``level``,
                      ``critical``; sent by one process, within a minute            ``before``, ``message``
====================  ============================================================  ==================================
"""

from __future__ import annotations

from django.dispatch import Signal

__all__ = ("dashboard_action", "queue_alert")

dashboard_action = Signal()
queue_alert = Signal()
