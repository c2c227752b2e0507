"""Reporting: what is measured on volumes, tables, pictures and the page that shows them."""
