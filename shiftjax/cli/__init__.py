"""The command `shiftjax`."""
