"""Maps in the formats of other programs, one module each; the table is ``files.formats.FORMATS``."""
