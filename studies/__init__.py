"""What the papers claim, tried at a size anyone can run: each study a sweep, a script, a page."""
