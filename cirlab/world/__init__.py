"""The built-in synthetic world: scenes, their pictures, and what people say of them."""
