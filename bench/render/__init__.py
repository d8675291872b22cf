"""Tables as values, and how they are shown: terminal, plain text, Markdown, CSV."""
