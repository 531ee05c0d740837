"""The proof that nothing is lost: models, storms, outages, hostile answers, and programs that end badly."""
