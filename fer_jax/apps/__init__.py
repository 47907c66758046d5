"""A trained network on people's own pictures.

A picture is decoded, faces are found in it, each becomes a 48x48 grey image as FER2013's are, and
the network says how probable each of the seven emotions is. Nothing else in `fer_jax` imports
it but `fer_jax.load`, at its first use; OpenCV is imported only where a face is looked for or a
video is read.
"""
