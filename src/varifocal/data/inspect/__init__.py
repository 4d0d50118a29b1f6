"""Looking at data before a night is spent on it: `check` reads all of it, `show` one packed row.

`look` says what one record shows, `counts` counts that by source, `doubles` finds what comes twice,
`epoch` packs the lengths, `verdict` says whether a run can start. `rows` finds what each token of a
packed row is to the model, `page` writes that as HTML. Nothing here knows models or prints.
"""
