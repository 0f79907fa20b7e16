"""Writing and protecting single files. Light: standard library only."""
