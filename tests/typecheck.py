"""The checker of annotations in every test run: an int is a float, too."""

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
