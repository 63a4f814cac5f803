# Only what this site says otherwise than the defaults in nbs/46_site.ipynb.
html_title = "mlsys"
