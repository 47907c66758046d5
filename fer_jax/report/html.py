"""Markdown and figures -> one HTML file that reads on a phone."""

import re
import urllib.parse
from collections.abc import Mapping

from fer_jax.report.figures import Drawing

_NARROW = "(max-width: 40rem)"  # where panels stand below one another


def page(text: str, drawings: Mapping[str, Drawing]) -> str:
    """Returns Markdown as one HTML page with its figures inside, in a wide and a narrow form.

    Args:
      text: the Markdown.
      drawings: name -> figure, for images whose address is `figures/<name>.svg`.
    """
    import markdown

    text = re.sub(r"<!-- [\w-]+:(begin|end) -->", "", text)  # the blocks' markers
    text = text.replace("<details>", '<details markdown="1">')
    body = markdown.markdown(text, extensions=["tables", "toc", "sane_lists", "md_in_html"])
    body = body.replace("<table>", '<div class="wide"><table>')
    body = body.replace("</table>", "</table></div>")

    def inline(match: re.Match[str]) -> str:
        drawing = drawings[match[2]]
        return (
            f'<picture><source media="{_NARROW}" srcset="{_address(drawing.svg(narrow=True))}">'
            f'<img alt="{match[1]}" src="{_address(drawing.svg())}"></picture>'
        )

    body = re.sub(r'<img alt="([^"]*)" src="figures/([^"]+)\.svg" ?/?>', inline, body)
    title = text.split("\n", 1)[0].removeprefix("# ")
    return _HTML.replace("TITLE", title).replace("BODY", body)


def _address(svg: str) -> str:
    svg = re.sub(r"\s+", " ", svg[svg.index("<svg") :]).replace("> <", "><")
    # A comma or a space would end an address in `srcset`.
    return "data:image/svg+xml," + urllib.parse.quote(svg, safe="=:/'();!*@?+$")


_HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 76rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
p, ul { max-width: 50rem; }
h1, h2, h3, h4 { line-height: 1.25; margin-top: 2em; }
h1 { margin-top: 0.5em; }
details { margin: 1em 0; }
summary { cursor: pointer; color: #0057a3; }
.wide { overflow-x: auto; margin: 1em 0; }
table { border-collapse: collapse; font-size: 0.85em; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid #ccc; padding: 0.25em 0.6em; vertical-align: top; }
th { background: #f2f2f2; overflow-wrap: normal; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; min-width: 6rem; }
th:first-child { background: #f2f2f2; }
td[style*="right"] { white-space: nowrap; }
picture, img { display: block; width: 100%; max-width: 50rem; }
code { background: #f2f2f2; padding: 0 0.2em; }
a { color: #0057a3; }
@media (max-width: 40rem) {
  th:first-child, td:first-child { max-width: 8rem; overflow-wrap: anywhere; }
  td { min-width: 3.5rem; }
  td:not([style*="right"]):not(:first-child) { min-width: 9rem; }
}
</style>
</head>
<body>
BODY
</body>
</html>
"""
