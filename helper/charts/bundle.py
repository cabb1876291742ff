"""The scripts that draw charts in a page: Vega, Vega-Lite and their loader, as one text."""

import functools


@functools.cache
def chart_scripts() -> str:
    """JavaScript that sets `vegaEmbed` and fetches nothing; of the package vl-convert-python, made afresh by each process."""
    import vl_convert  # takes memory that only a report needs

    return vl_convert.javascript_bundle()
