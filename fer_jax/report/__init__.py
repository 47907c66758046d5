"""Records -> tables, figures and pages: `launch.py --mode=report`.

* `paper`: what the paper prints.
* `records`: reads the records of runs.
* `statistics`: calibration, paired tests and the like, of plain arrays.
* `markdown`: tables, and the blocks of a document.
* `tables`, `figures`: what records say, as Markdown and as drawings.
* `page`: docs/reproduction.md and README.md.
* `speed`: training beside other frameworks, for README.md.
* `reliability`: docs/reliability.md.
"""
