"""fieldmark: from a folder of photos to an image classifier. Each module is one page of the manual.

Importing the package loads nothing else: `from fieldmark import train` loads what training needs.
"""
