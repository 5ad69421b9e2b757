"""A site's privacy statement: its mechanisms and what they cost, in words and figures."""
