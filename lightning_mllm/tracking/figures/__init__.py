"""Pictures of results as PNG files: nothing else imports matplotlib, whose global state stays."""
