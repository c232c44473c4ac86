"""A report in forms that travel: Markdown with images, tables as CSV and XLSX, Benchmark Report.

Each is made from the page's own parts, or from the result that the page shows; `split_page` is made
from a prediction.
"""
