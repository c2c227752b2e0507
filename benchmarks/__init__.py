"""One script per claim; a package, so that those of others which are installed do not stand in its way."""
