"""The provider: the Evolution API, as far as the chat uses it. ``client`` calls it, ``fake`` stands for it."""
