"""Side-by-side measurements of llm_train and its peers; README.md explains them."""
