"""Pages of HTML that are one file each: templates, styles and scripts in assets/, put together by page.py."""
