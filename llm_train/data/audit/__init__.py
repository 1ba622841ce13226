"""Questions about prepared tokens: what a step reads, what a folder holds, what two differ in.

Nothing here needs the text that the tokens were made from, or the classes of the recipe.
"""
