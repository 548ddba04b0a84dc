"""From archives to IMAGES: layouts, checks, folds, tables; `datasets` has a file for each data set."""
