"""Commands that say what there is: ``methods`` and ``families``."""

from __future__ import annotations

from typing import Annotated

import typer

from foveate.lab import catalog as face
from foveate.lab import checks, terminal
from foveate.lab.completion import a_folder, a_method, among
from foveate.lab.typed import Json


def methods(
    name: Annotated[
        str | None, typer.Argument(help="A method: print everything about it.", autocompletion=a_method())
    ] = None,
    site: Annotated[
        str,
        typer.Option(help="Only methods that act at this place: tower, decoder ...", autocompletion=among(*face.WHERE)),
    ] = "",
    search: Annotated[
        str, typer.Option(help="Only methods with these words in their name, title or description.")
    ] = "",
    json: Json = False,
) -> None:
    """List the methods: paper, sites, trained or not, budget, options."""
    if name is None:
        found = face.describe_methods(site, search)
        terminal.emit(found) if json else face.show_methods(found, terminal.out)
    elif site or search:
        raise terminal.CommandError(f"give the name {name!r}, or --site and --search to find some, not both")
    else:
        one = face.describe_method(name)
        terminal.emit(one) if json else face.show_method(one, terminal.out)


def families(
    inspect: Annotated[
        str,
        typer.Option(
            help="Propose the file of a new family, for this model type, config file or folder.",
            metavar="TYPE",
            autocompletion=a_folder,
        ),
    ] = "",
    json: Json = False,
) -> None:
    """List the families of models that methods can be attached to."""
    if inspect:
        checks.check_type(inspect)
        kind = checks.type_of(inspect)
        if said := face.is_known(kind):
            terminal.warn(said)
        from foveate.lab.inspection import proposal
        from foveate.models.refused import REFUSED

        if kind in REFUSED:
            terminal.warn(f"foveate does not support the type {kind!r}, because {REFUSED[kind]}")
        found_out = proposal.inspect(inspect)
        terminal.emit(found_out.to_dict()) if json else print(found_out)
        return
    found = face.describe_families()
    if json:
        terminal.emit(found)
    else:
        face.show_families(found, terminal.out)
