"""A site's privacy statement: its mechanisms and their cost, in words and figures."""
