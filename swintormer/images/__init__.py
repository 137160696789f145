"""Files of pictures: reading, writing, metadata, comparisons."""
