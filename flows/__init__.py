"""The stories, one verb a file; a flow fits on one screen and only calls steps."""
