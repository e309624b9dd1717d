"""Changes of what a VM has that take effect while it runs, a module for each kind."""
