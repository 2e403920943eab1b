"""The report of a run: one HTML file, made of the files of its folder."""
