"""From the crawl to clean text: the FineWeb recipe on datatrove. Needs the extra `curate`."""
