"""Methods of papers that are not in the library, each as small as its idea: they show what the vocabulary can say."""
