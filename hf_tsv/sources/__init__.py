"""The models that a recipe names: pin, open and fetch them, and copy the files beside their weights."""
