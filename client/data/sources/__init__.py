"""Sources of a site's records: files, databases, images. `[data] source` in `site.toml` names one.

    options         their settings
    registry        from the settings to the source
    chunks          what a source of tables yields
    table_tensors   from a table to tensors, by the columns that a task declares
    listed_files    images that a table lists

The rest is one file per source. A source refuses what it cannot read with the row and the column, and never shows the
value: messages end up in logs, which more people read than records.
"""
