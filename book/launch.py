"""Buttons that open a chapter elsewhere: one setting, none while it is empty.

`book_launch.repository` in `_config.yml` is the address of the repository;
the other keys name the services and can be emptied one by one.
"""

from sphinx.application import Sphinx
from sphinx.config import Config

SERVICES = {"binder": "binderhub_url", "colab": "colab_url"}


def options(setting: dict[str, str]) -> dict[str, object]:
    """Return what the theme needs to show the buttons of `setting`.

    A key that means nothing raises `ValueError`.
    """
    if unknown := set(setting) - {"repository", "branch", *SERVICES}:
        raise ValueError(f"book_launch has no {sorted(unknown)}")
    repository = setting.get("repository", "").rstrip("/")
    buttons = {
        name: setting[service]
        for service, name in SERVICES.items()
        if setting.get(service)
    }
    if not (repository and buttons):
        return {}
    return {
        "repository_url": repository,
        "repository_branch": setting.get("branch", "main"),
        "launch_buttons": {**buttons, "notebook_interface": "jupyterlab"},
    }


def configure(app: Sphinx, config: Config) -> None:
    """Hand the setting to the theme."""
    found = options(config.book_launch or {})
    config.html_theme_options = {**config.html_theme_options, **found}


def setup(app: Sphinx) -> None:
    """Register the setting."""
    app.add_config_value("book_launch", {}, "html")
    app.connect("config-inited", configure)
