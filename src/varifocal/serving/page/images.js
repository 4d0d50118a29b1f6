// Reads images and makes them small enough to send.

export const LONGEST_SIDE = 1024;
const LARGEST_AS_IS = 600_000; // bytes
const AS_IS = ["image/png", "image/webp", "image/gif"];

/**
 * Turn a file into a data URI with sides of at most `most` pixels.
 *
 * Photographs are always drawn anew: that turns them upright and leaves out where they were taken.
 */
export async function readImage(file, most = LONGEST_SIDE) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw new Error(`${file.name || "This file"} is no image that this browser can read.`);
  }
  const longest = Math.max(bitmap.width, bitmap.height);
  if (longest <= most && file.size <= LARGEST_AS_IS && AS_IS.includes(file.type)) {
    bitmap.close();
    return asUri(file);
  }
  const scale = Math.min(1, most / longest);
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#ffffff"; // JPEG knows no transparency
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas.toDataURL("image/jpeg", 0.9);
}

function asUri(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(new Error(`${file.name} cannot be read.`)));
    reader.readAsDataURL(file);
  });
}

/** The images among what was dropped, pasted or chosen. */
export function imageFiles(list) {
  return [...(list ?? [])].filter((file) => file.type.startsWith("image/"));
}
