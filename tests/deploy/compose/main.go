// Reads a compose file as Docker's compose does (schema, interpolation, paths), and prints what it makes of it as JSON.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	options, err := cli.NewProjectOptions(os.Args[1:], cli.WithName("tidelog"), cli.WithResolvedPaths(true))
	if err == nil {
		var project, loadErr = options.LoadProject(context.Background())
		if err = loadErr; err == nil {
			var text []byte
			if text, err = project.MarshalJSON(); err == nil {
				fmt.Println(string(text))
				return
			}
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
