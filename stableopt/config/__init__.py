"""Arguments that cannot work are refused here; the same options from a plain dict."""
