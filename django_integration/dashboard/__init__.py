"""The dashboard: what operators see of the queues, and what they may do, in the admin or as pages of their own.

===============  ======================================================================================
``place``        where the pages live: in the admin, or outside of it; their addresses
``look``         one request: who asks, what they may, how an answer is made
``pages``        the table of all pages
``queues``       the queue table, with alerts
``dead``         dead letters: search, one in full, exports
``actions``      replay and purge of dead letters: counted first, confirmed, in bounded steps
``delayed``      delayed messages: look, run now, cancel
``waiting``      one message in full that is delayed, or held by a worker; attempts
``held``         what the limits of its task hold back, by lane
``workers``      workers and what they run; revoke, terminate
``history``      how a queue fared within an hour or a day
``last``         what was seen last, for while Redis is away
``charts``       lines over time, as SVG
``doctor``       alerts, and the doctor's findings
``arguments``    what a task was called with, as it may be shown
``exports``      CSV and JSON
``alert_texts``  what alerts say, in the language of the page
``sentences``    what the doctor says, and other sentences, likewise
``figures``      numbers as the language of the page writes them
``audit``        who did what: signal, log line, the admin's log
===============  ======================================================================================

Server-rendered; every page works without JavaScript. State is in the address or in the form, never in the process.
"""
