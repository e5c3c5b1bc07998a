"""Links as the site has them: pages outside docs/ that have a page of the site, and notebooks, which the site shows executed."""

import re
from pathlib import PurePosixPath

_NOTEBOOK = re.compile(r"\]\((?P<up>(?:\.\./)+)notebooks/(?P<folder>\w+)/(?:\d+_)?(?P<name>\w+)\.ipynb(?P<anchor>#[^)]*)?\)")
_PAGE = re.compile(r"\]\((?P<up>(?:\.\./)+)(?P<page>README|CHANGELOG|CONTRIBUTING|data/README)\.md(?P<anchor>#[^)]*)?\)")
_PAGES = {"README": "index", "CHANGELOG": "changelog", "CONTRIBUTING": "contributing", "data/README": "data"}


def site_links(text: str, docname: str) -> str:
    """A page's source with such links led to pages of the site.

    Args:
        docname: the page as Sphinx names it, such as `api/index`.
    """
    depth = len(PurePosixPath(docname).parts)  # from docs/index, the repository's root is one folder up

    def notebook(found: re.Match[str]) -> str:
        if found["up"].count("../") != depth:
            return found.group()
        home = "../" * (depth - 1)
        return f"]({home}notebooks/{found['folder']}/{found['name']}.ipynb{found['anchor'] or ''})"

    def page(found: re.Match[str]) -> str:
        if found["up"].count("../") != depth:
            return found.group()
        return f"]({'../' * (depth - 1)}{_PAGES[found['page']]}.md{found['anchor'] or ''})"

    return _PAGE.sub(page, _NOTEBOOK.sub(notebook, text))
