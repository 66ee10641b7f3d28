"""Recipes: the typed description of an experiment, and what it is built from."""

from cktf.recipes.build import (
    Data,
    Problems,
    build_data,
    build_test,
    check,
    custom_loader,
    loader_of_test,
)
from cktf.recipes.files import (
    assign,
    located,
    make_recipe,
    make_transfer,
    put,
    read_recipe,
    recipe_of,
    to_yaml,
)
from cktf.recipes.networks import (
    Teacher,
    going_on_from,
    load_teacher,
    new_network,
    teacher_file,
)
from cktf.recipes.schema import CUSTOM, DistillRecipe, Recipe, TrainRecipe, TransferRecipe

__all__ = [
    "CUSTOM",
    "Data",
    "DistillRecipe",
    "Problems",
    "Recipe",
    "Teacher",
    "TrainRecipe",
    "TransferRecipe",
    "assign",
    "build_data",
    "build_test",
    "check",
    "custom_loader",
    "going_on_from",
    "load_teacher",
    "loader_of_test",
    "located",
    "make_recipe",
    "make_transfer",
    "new_network",
    "put",
    "read_recipe",
    "recipe_of",
    "teacher_file",
    "to_yaml",
]
