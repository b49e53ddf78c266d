"""Errors name the setting, its value, what is wrong with it, and what to do."""

import vinfinity

try:
    vinfinity.generate("a red ball", frames=0)
except vinfinity.InputError as error:
    print(f"{error.field} = {error.value}: {error.remedy}")
    print(error)
