"""Settings of members that are given the same options: each takes those that it has."""

import dataclasses


def made(members, name, **options):
    """Make the settings of a member from those of the options that it has."""
    own = {field.name for field in dataclasses.fields(members.settings(name))}
    return members.make(name, **{key: value for key, value in options.items() if key in own})
