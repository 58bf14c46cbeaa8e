"""A chat: people write to contacts and groups behind a provider's API.

=================  ==========================================================================
module             owns
=================  ==========================================================================
``models``         conversations and their messages, and the switch of the fake API
``tasks``          the four tasks
``sending``        what a person does: send, send again, mark as read, fetch anew
``states``         what becomes of a message, in words
``permissions``    who may see the state of a task
``breaking``       kills a worker, or one of its children
``evolution``      the provider: ``client`` calls it, ``fake`` stands for it
``views``          the pages
``middleware``     what the pages may load
=================  ==========================================================================
"""
