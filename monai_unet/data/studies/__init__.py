"""Folders of studies: found, named by pseudonyms, predicted one by one."""
