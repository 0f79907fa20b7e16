"""Model families, one per file: names, sizes, repositories and configurations. Light: nothing is imported here."""
