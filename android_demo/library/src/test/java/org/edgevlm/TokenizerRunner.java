package org.edgevlm;

import java.io.BufferedInputStream;
import java.io.BufferedOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.File;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.file.Files;

/**
 * Tokenizes a file of texts for the tests: {@code TokenizerRunner tokenizer.bin texts.bin results.bin}.
 *
 * <p>Texts are a count, then length and UTF-8 of each; a result is the ids with control tokens recognised, their spans, the
 * ids as text at the start and inside, and the decoded ids; all numbers are big-endian ints. A refused text gives the
 * count -1. With a fourth argument, "decode", texts.bin holds lists of ids, and a result is the text of each.
 */
final class TokenizerRunner {
    private TokenizerRunner() {
    }

    public static void main(String[] args) throws IOException, EdgeVlmException {
        Tokenizer tokenizer = new Tokenizer(ByteBuffer.wrap(Files.readAllBytes(new File(args[0]).toPath())));
        try (DataInputStream in = new DataInputStream(new BufferedInputStream(new FileInputStream(args[1])));
                DataOutputStream out = new DataOutputStream(
                    new BufferedOutputStream(new FileOutputStream(args[2])))) {
            int count = in.readInt();
            if (args.length > 3) {
                decode(tokenizer, count, in, out);
                return;
            }
            for (int i = 0; i < count; i++) {
                byte[] bytes = new byte[in.readInt()];
                in.readFully(bytes);
                int[] text = Utf8.points(Utf8.decodeStrictly(bytes));
                int[] ids = null;
                try {
                    Tokens tokens = tokenizer.encodeTokens(text);
                    ids = tokens.ids.toArray();
                    write(out, ids);
                    write(out, tokens.starts.toArray());
                    write(out, tokens.ends.toArray());
                } catch (EdgeVlmException refusal) {
                    out.writeInt(-1);
                }
                for (int start = 1; start >= 0; start--) {
                    try {
                        write(out, tokenizer.encodeAsText(text, start == 1));
                    } catch (EdgeVlmException refusal) {
                        out.writeInt(-1);
                    }
                }
                if (ids != null) {
                    StreamDecoder decoder = new StreamDecoder(tokenizer);
                    StringBuilder decoded = new StringBuilder();
                    for (int id : ids) {
                        decoded.append(decoder.push(id));
                    }
                    byte[] result = Utf8.encode(decoded.append(decoder.finish()).toString());
                    out.writeInt(result.length);
                    out.write(result);
                }
            }
        }
    }

    private static void decode(Tokenizer tokenizer, int count, DataInputStream in, DataOutputStream out)
            throws IOException, EdgeVlmException {
        for (int i = 0; i < count; i++) {
            StreamDecoder decoder = new StreamDecoder(tokenizer);
            StringBuilder decoded = new StringBuilder();
            for (int n = in.readInt(); n > 0; n--) {
                decoded.append(decoder.push(in.readInt()));
            }
            byte[] result = Utf8.encode(decoded.append(decoder.finish()).toString());
            out.writeInt(result.length);
            out.write(result);
        }
    }

    private static void write(DataOutputStream out, int[] values) throws IOException {
        out.writeInt(values.length);
        for (int value : values) {
            out.writeInt(value);
        }
    }
}
