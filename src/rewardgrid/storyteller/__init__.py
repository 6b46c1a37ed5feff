"""The storyteller: a base of natural text, distilled from a small open model that a package ships."""
